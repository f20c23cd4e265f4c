"""Proto-tokens: arrangements (Table 1), loss and accuracy of a text (Eq. 1 and 2), reconstruction.

May import `errors`, `tokens`, `devices`, `store`, `model`.
"""
