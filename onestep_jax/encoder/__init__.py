"""The encoder: a text becomes (e, m) without optimisation, or with a few learned steps of it.

`design` says what an encoder is made of; `reading` makes vectors from tokens, `corrections` mends them by gradients of
the frozen decoder; `objective` is what is trained, `windows` what it is trained on, `training` the loop, `recipe` its
settings, `snapshots` what a resume needs; `folder` keeps an encoder on disk; `encoding` uses one.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`.
"""
