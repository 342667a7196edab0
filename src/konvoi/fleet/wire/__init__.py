"""What carries messages between islands."""
