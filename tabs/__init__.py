"""The tabs of demo.py: for each system what it shows, as functions from input to HTML, and the page's controls around them."""
