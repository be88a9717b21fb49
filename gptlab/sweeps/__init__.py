"""Many runs, each a process of its own. Nothing here loads torch."""
