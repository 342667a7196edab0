"""Between islands: their updates become one decision a round, by a pure machine without sockets, clocks or tensors."""
