"""A model as one page of HTML that runs it: what is written, and the page's own files."""
