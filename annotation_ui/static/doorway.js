// The pages before judging follow the colours that were chosen on it.
const chosen = localStorage.getItem("rlhf-colours");
if (chosen) document.documentElement.dataset.colours = chosen;
