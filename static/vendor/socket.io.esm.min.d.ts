// The type of the vendored client. tsc reads this file instead of the minified code.
export function io(namespace: string, options: object): any;
