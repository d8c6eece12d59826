"""Language: masked pretraining, GLUE, and classes of texts (section 4.1)."""
