"""What both ends of a round share: the study's settings, what may leave, how weights travel.

The hospital's gateway reads these modules too, so most of them work without torch. May import `federation.system` and
`pipeline`. Begin with `study_config`, then `metric_allowlist`.
"""
