"""Pages of HTML: of one run, and of a report; each is one file that needs neither a server nor a network."""
