"""What happens in a round: at the sites, on the wire, and in the strategy that makes one model of many."""
