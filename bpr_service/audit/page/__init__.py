"""The page of an audit: one HTML file that shows the worst masks, before and after, and takes decisions."""
