"""`overspill demo`: the whole system on real images, measured while a model is pushed."""
