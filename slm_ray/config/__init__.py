"""Options, units and errors: one declaration for flag, YAML field and check."""
