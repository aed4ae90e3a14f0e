"""Turns a volume into the tensor that the network reads: resampling, lungs, lesion measures.

Also checks that a volume shows a whole adult chest (`plausibility`), and makes the golden volume with which sites
compare their preprocessing. May import `imaging` and `system`. Begin with `preprocess`.
"""
