"""What a mask is, and the pictures it is of."""
