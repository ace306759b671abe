"""Derived tables out of the tables that were recorded: who makes what, in which order, and what is new."""
