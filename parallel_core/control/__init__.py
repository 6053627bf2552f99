"""What may be put around a call or a batch: one small module for each control.

What wraps one call is a function from call to call, so that one version serves
trio and asyncio. What orders requests hands them to the engine in another order. What watches a
batch is told of it. None of them knows the engine; :mod:`parallel_core._plan` puts them together.
"""
