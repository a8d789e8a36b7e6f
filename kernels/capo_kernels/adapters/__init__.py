"""The losses behind the interfaces of other libraries; import the one you need, such as `capo_kernels.adapters.trl`.

No adapter imports its library: each is written for, and where that library runs on a CPU tested against, the version
that its docstring names.
"""
