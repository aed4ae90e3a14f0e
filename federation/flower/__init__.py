"""Every private name of Flower that this package uses, and nothing else.

Private is what Flower's API reference does not list: it may change with any release. Import public names (`flwr.app`,
`flwr.clientapp`, `flwr.serverapp`) from Flower, and everything else from here. An upgrade of Flower then begins in this
room. May import only Flower, starlette and the standard library. Begin with `messages`.
"""
