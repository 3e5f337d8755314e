"""The model card: what is published, how it was trained, its figures, and what nobody wrote down."""
