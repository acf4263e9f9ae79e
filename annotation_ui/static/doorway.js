// The pages before judging follow the colours that were chosen on it.
import { recall } from "./outbox.js";

document.documentElement.dataset.colours = recall("rlhf-colours") ?? "";
