"""A federation of sites whose data stay where they are: its server, and what runs at each site."""
