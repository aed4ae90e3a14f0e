"""The canary proof: what is planted at a site is looked for in every byte that leaves it. See docs/canary.md."""
