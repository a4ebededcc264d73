"""Settings of the codes: configurations, presets, values per layer and head, tables of a model."""
