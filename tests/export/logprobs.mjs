// node logprobs.mjs MODEL.gguf '[ids]' 'text': log-probabilities of every next id, the likeliest ids, and the text's ids.
import {getLlama} from "node-llama-cpp";

const [, , modelPath, ids, text] = process.argv;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({
    contextSize: 128, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
});
const tokens = JSON.parse(ids);
const input = tokens.map((token) => [token, {generateNext: {probabilities: true, options: {temperature: 0}}}]);
const found = await context.getSequence().controlledEvaluate(input);
const probabilities = found.slice(0, -1).map((one) => one.next.probabilities);
console.log(JSON.stringify({
    logprobs: probabilities.map((of, at) => Math.log(of.get(tokens[at + 1]))),
    likeliest: probabilities.map((of) => [...of.keys()][0]),
    ids: model.tokenize(text)
}));
process.exit(0);
