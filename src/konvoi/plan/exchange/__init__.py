"""How a round's updates become one result, in tensors."""
