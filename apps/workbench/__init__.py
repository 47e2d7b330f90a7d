"""The workbench: pages over ``interp``'s public names. The only door to dash.

``python -m apps.workbench`` serves it. This process never imports torch: the worker process holds
the models and publishes what each method wants, and the pages are built from that.
"""
