"""One module per algorithm: its task loss in a slow and obvious form, of which nothing is metarun's.

`SETTINGS` are small settings for the tests; `plain_loss(backbone, theta, episode, **settings)`, without the setting
`norm`, is the scalar for one task, differentiable in `theta` by plain autograd. `BACKBONES`, where there is one, names
those the algorithm works with in the tests; without it, all. `EXACT = False` says that the scalar's gradient is by
design not the derivative of its value, and so no finite difference's.
"""
