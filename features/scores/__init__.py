"""What is known of each feature: modality dominance, monosemanticity, a name."""
