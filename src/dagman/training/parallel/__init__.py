"""Several processes that train one run: the group they form, how gradients are reduced, and who notices that one hangs."""
