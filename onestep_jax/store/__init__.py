"""The run directory: every result, whole or not at all, through kills and resumes.

May import `errors`, `tokens`.
"""
