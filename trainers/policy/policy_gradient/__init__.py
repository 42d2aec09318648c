"""REINFORCE and its relatives: samples of the policy's own, advantages, and the update."""
