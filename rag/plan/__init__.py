"""How much memory, disk, time and how many machines a knowledge base takes, from measured constants."""
