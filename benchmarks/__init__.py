"""What parallel_core costs, and how fast it stops, beside what a user would pick instead.

``python -m benchmarks --help`` tells how to run it.
"""
