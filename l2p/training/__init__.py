"""Training: the Lightning module and data, optimiser, average, callbacks, and the stages of a distillation."""
