"""Clients that are simulated: many models trained at once, on devices that are here."""
