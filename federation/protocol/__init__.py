"""What both ends of a round share: the study's settings, the figures that may leave, the encoding of weights.

The hospital's gateway uses these modules too, so most of them work without torch. They may import `federation.system`
and `pipeline`. Begin with `study_config`, then `metric_allowlist`.
"""
