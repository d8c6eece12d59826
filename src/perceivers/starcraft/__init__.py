"""StarCraft II: the units that a player selects, and what they are told to do (section 4.5)."""
