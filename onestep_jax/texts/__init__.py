"""Where texts come from: files, the hub, the paper's sources.

May import `errors`, `tokens`, `model`.
"""
