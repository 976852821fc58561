"""Commands on an encoder: features, attention, description and export."""
