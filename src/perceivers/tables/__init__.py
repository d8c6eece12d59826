"""Tables of any columns: the experiment, its columns, and what explains its models."""
