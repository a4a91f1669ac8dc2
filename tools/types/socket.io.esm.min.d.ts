// What tsc has to know of the vendored client, instead of reading its minified code.
export function io(namespace: string, options: object): any;
