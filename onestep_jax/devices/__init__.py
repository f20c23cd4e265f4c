"""Where programs run: devices, how weights are split over them, compiled programs on disk.

May import `errors`.
"""
