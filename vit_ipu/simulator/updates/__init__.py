"""The weight update: an optimizer's attributes, and PopART's formulas that use them."""
