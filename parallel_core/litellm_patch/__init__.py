"""What :func:`parallel_core.install` puts into litellm.

``experimental_flags`` and ``parallel_acompletion`` are loaded under litellm's names, by the finder
in ``import_finder``. They are not imported as modules of this package.
"""
