"""The one training engine: Lightning, with steps as pure functions of their number, and checkpoints that say what made them.

A training is a :class:`~l2p.training.engine.module.StepModule` and batches by step. Distillation and pixel decoders bring their own
module and data; teacher, head, judge and growing are :class:`~l2p.training.engine.task.Task` objects.
"""
