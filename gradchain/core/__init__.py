"""The law: Tensors, scalars, State, Transform, Context, chain. It knows no algorithm and no model."""
