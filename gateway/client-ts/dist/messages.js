// Parameters, answers and events, by the names of the API.
export {};
