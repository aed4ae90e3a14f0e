"""Secure aggregation: the study's server learns the sum of the hospitals' replies, and no single reply.

The protocol of Bonawitz et al. (2017), "Practical Secure Aggregation for Privacy-Preserving Machine Learning", in the
variant for a server that cheats. Pure: no network, no Flower. It may import only `federation.system` and what is below
`federation`. Begin with `site_round`, the states of a hospital's gateway, then `server_round`; `messages` has the
formats, `reply_vector` and `answer_vector` turn a reply into numbers that can be summed, `masking` hides them.
"""
