"""HTTP: what a request is, who may send it, what it may cost, and how it is answered."""
