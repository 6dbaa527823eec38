"""The page in the browser that generates pictures."""
